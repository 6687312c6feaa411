"""What a recipe may say: `files` reads its YAML, `overrides` puts key=value in, `run` checks it.

`sections` holds what is seen and by what, `trainer` how the work is done; each method brings its
own section (`settings.py` in its folder).
"""
