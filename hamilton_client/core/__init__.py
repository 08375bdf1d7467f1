"""The pure decision path: polars, numpy and pydantic only. Backtest, shadow and live all run this code."""
