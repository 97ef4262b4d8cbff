"""A training that stops by itself, to see whether it goes on as if it had not."""


class StopError(Exception):
    """Raised by `stop_at`, and by nothing else."""


def stop_at(iteration: int):
    """What `on_metrics` takes, to stop after this update."""

    def on_metrics(row):
        if row["iteration"] == iteration:
            raise StopError

    return on_metrics
