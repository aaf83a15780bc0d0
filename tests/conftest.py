from hypothesis import HealthCheck, settings

# The same examples in every run, on a machine of any speed, and nothing of them is kept in the folder.
settings.register_profile(
    "unchanging", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unchanging")
