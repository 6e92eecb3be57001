"""The power sidecar: samples a host's power beside the server and hands the samples on over HTTP."""
