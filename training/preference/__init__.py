"""Preference optimization (DPO): `poise preference`."""
