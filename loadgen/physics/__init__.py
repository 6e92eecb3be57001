"""Time and power of an inference step from first principles and sourced constants.

``hardware`` says what a board is and ``boards`` holds the known ones, ``models``
the shapes of transformers and ``formats`` the number formats; ``transformer`` is
the roofline step time, ``power`` what a busy board draws, ``memory`` what fits
it, ``uncertainty`` random boards within what is known. Pure functions; nothing
here keeps state or reads a clock, only ``models.read_config`` and
``profile_file`` read files.
"""
