"""An FTS3 to develop and test against: FTS 3.13's REST contract, a real engine, real copies."""
