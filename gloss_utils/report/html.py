from gloss_utils.runs.report import page  # noqa: F401
