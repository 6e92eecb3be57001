"""What is known of one run, put together: where its energy went, how it behaved, how far to believe it."""

from analysis.study.findings import Options, Study, as_object, study, write

__all__ = ["Options", "Study", "as_object", "study", "write"]
