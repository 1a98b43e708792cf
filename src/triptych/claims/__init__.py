"""The papers' claims, tested on the starters: data, runs, measures, verdicts, pages."""
