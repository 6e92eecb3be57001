"""Time and power of an inference step from first principles and sourced constants.

``hardware`` holds the boards, ``transformer`` the model shapes and the roofline
step time, ``power`` what a busy board draws. Pure functions; nothing here keeps
state or reads a clock.
"""
