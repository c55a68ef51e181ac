"""What the command line is made of. Only `commands` imports heavy things, and only while a command runs.

Code is run only if it was typed in this command: models and recipes are code. Run folders, weights and posteriors are data.
"""

#: Exit codes: a number to believe, none, a user's mistake.
BELIEVE, WEAK, MISTAKE = 0, 2, 3
