"""Everything that runs on Ray; no other folder imports it."""

import os
from pathlib import Path

# Ray reads these when it is imported or when its processes start, so they are set here, before
# any module of this package can import Ray.
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # raybench prints its own table
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative --data paths keep their meaning in workers
    # A stage that dies fails both results of its call, of which only one is read.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # otherwise Tune restarts the trial itself
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    # Train's polling of its workers, every 2 s by default. Results do not go through Train.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_worker_niceness": "0",  # the default of 15 would distort every ratio to plain torch
    "SPT_NOENV": "1",  # Ray's process titles must not overwrite the environment in /proc
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no progress.csv, result.json, tfevents per trial
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",  # Room limits them; 1 would start them one by one
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Tune's snapshots are unused: a sweep resumes from its log
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # raybench prints one line per loss
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)


def use_token() -> None:
    """Makes Ray's clients send the token, if there is one; call it before importing Ray.

    Ray 2.60 starts clusters with token authentication and stores the token in the home folder, but
    its clients send it only if RAY_AUTH_MODE is set.
    """
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


if os.environ.get("RAY_ADDRESS"):
    use_token()
