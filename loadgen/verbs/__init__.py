"""The flags of each verb, a module a verb; what it does is handed in by `loadgen.cli`."""
