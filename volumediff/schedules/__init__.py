"""Noise schedules: how much signal and how much noise a state holds at time t."""
