"""Prompt sources: where request bodies come from, one file each. The table is `loadgen.scenario.SOURCES`."""
