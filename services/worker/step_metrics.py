"""Publishes what the engine did in each step."""

from services.engine.output import StepStats
from services.telemetry.metrics import WorkerMetrics
from services.worker.throughput import Throughput


class StepMetrics:
    """Called on the event loop after each step."""

    def __init__(self, metrics: WorkerMetrics, throughput: Throughput) -> None:
        self._metrics = metrics
        self._throughput = throughput

    def __call__(self, stats: StepStats, duration_s: float) -> None:
        """Account for one step that took ``duration_s``."""
        if not stats.num_tokens:
            return
        self._throughput.observe(stats, duration_s)
        self._metrics.steps.inc()
        self._metrics.step_seconds.observe(duration_s)
        self._metrics.step_rows.observe(stats.num_tokens)
        self._metrics.preemptions.inc(stats.num_preempted)
        self._metrics.guessed_tokens.labels(outcome="right").inc(stats.num_guessed_right)
        self._metrics.guessed_tokens.labels(outcome="wrong").inc(stats.num_guessed - stats.num_guessed_right)
