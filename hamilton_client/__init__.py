"""Hamilton: the thin client on the trading box, and in `core` the one decision path that cloud and live share."""
