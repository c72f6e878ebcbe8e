"""Key locks for joint attention: docs/decisions/locked-streams.md."""
