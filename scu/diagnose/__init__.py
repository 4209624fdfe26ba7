"""What is wrong with a run, why, and what to change: findings in rank.py."""

from scu.diagnose.rank import Finding, Severity, Source, findings

__all__ = ["Finding", "Severity", "Source", "findings"]
