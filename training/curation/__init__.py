"""Which encoders to align, and on which records: `poise rank-encoders` and `poise curate`."""
