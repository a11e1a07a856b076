from gloss_utils.report.figures import write  # noqa: F401
