"""Models that a generator made, each held to PyTorch on every target: what nobody thought of writing down.

recipes.py    a generated model as data: what `models.jsonl` holds, and the module that it makes
draw.py       recipes from nnsmith, which is a tool of development and not needed to run them
trial.py      a model on a target: exported as a user does, then compared with PyTorch once more
campaign.py   all of them, resumed where it was left
"""
