"""Background tasks of a serving process: supervision, polling, delivery and jobs."""
