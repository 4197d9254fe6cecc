"""Tests of what a model still can: task files for lm-eval, their items, and their scores."""
