"""The parts of scripts/bench: `tools` (processes and what is read off them), `swarm` (content and who serves it),
`clients` (who is measured, behind one interface), `volume`, `latency`, `storage`, `local` and `web` (what is measured),
`report` (figures, targets, tables). `scripts/bench.py` puts them together.
"""
