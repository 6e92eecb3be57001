"""Whether a published energy per request is possible."""
