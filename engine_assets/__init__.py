"""The night as Dagster assets; empty on purpose, so that Ray workers import `logic` without Dagster."""
