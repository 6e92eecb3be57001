"""Every figure that the two studied documents state, beside what their own formulas and data give.

``erratum`` is one entry and how its verdict is decided. The entries: ``prefill``,
``decode``, ``energy`` and ``serving`` hold the report's, ``paper``, ``thresholds`` and
``benchmark`` the text-to-video paper's, ``facts`` what else both state. ``published``
has the tables they share, ``markdown`` renders docs/errata.md. What stands under
"computed" is computed when asked for, except measurements, which have a source.
"""
