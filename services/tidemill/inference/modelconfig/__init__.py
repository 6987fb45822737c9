"""Configurations of models as operators write them (`config.pbtxt`): read, checked, completed and turned into ours."""
