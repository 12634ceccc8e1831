"""Are the data sets what they should be? A check before a day of training is spent on them.

`python -m data.doctor` examines folders (examine): what lies there (data.folders, listing), what
the pixels of each pair say (measures) and what follows from it (verdicts); findings prints it.
"""
