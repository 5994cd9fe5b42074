"""`zoo runs sync`: records that waited for MLflow's server are sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.runs.console import Console


def sync(root: Path | None, tracking_uri: str | None, console: Console) -> dict[str, Any]:
    """Replays the spool; runs that still train on this machine send theirs themselves.

    Raises:
        ConnectionError: the server still does not answer; says how many records wait.
    """
    from zoo.tracking.spool import replay_spool

    report = replay_spool(root, tracking_uri)
    console.say(f"sent        {report.sent} records of {len(report.run_ids)} runs to {report.store}")
    for run_id in report.run_ids:
        console.say(f"run         {run_id}")
    if report.waiting:
        console.say(f"waiting     {report.waiting} records; run this again")
    return {"sent": report.sent, "waiting": report.waiting, "runs": list(report.run_ids)}
