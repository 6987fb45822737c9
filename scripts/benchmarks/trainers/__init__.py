"""Systems that train on several processes, measured by `training.py`: one a file, beside what they all share."""
