"""The embedded inference server: batching engine, simulated board, service, routes."""
