"""The thank-you study's models as it states them; this project's own is ``loadgen.physics.transformer``.

``llm`` holds the operations of its roofline and their times, ``closed`` the closed
forms, knees and regimes that follow, ``fitted`` the laws it fitted to its
measurements. Source: arXiv 2601.22362, Tables 5-8 and appendix A.
"""
