"""What the closed division's rules ask of each key of a log, in plain words.

Source: mlperf-logging, compliance_checker/training_3.1.0.
"""

RUN_AGAIN = "and run again: a log is never edited by hand."
CUT = "Run again with `maskperf run`, which logs it; where it did, the log was cut: take the whole file."
RULES = {  # key of the log: what its value must be, what to do where it is not
    "submission_benchmark": ("the name of a benchmark of the round, here maskrcnn", f"Log maskrcnn {RUN_AGAIN}"),
    "submission_org": ("the submitter's name, not empty", f"Set mlperf.organization=NAME {RUN_AGAIN}"),
    "submission_platform": ("the system's name, not empty", f"Set mlperf.platform=NAME {RUN_AGAIN}"),
    "submission_division": ("closed or open", f"Set mlperf.division=closed or open {RUN_AGAIN}"),
    "submission_status": ("onprem, cloud, preview or research", f"Set mlperf.status to one of them {RUN_AGAIN}"),
    "cache_clear": ("true, logged when the caches were emptied before the run", CUT),
    "init_start": ("nothing; it stands before init_stop and run_start", CUT),
    "init_stop": ("nothing; it stands between init_start and run_start", CUT),
    "run_start": ("nothing; it starts the clock, after init_stop", CUT),
    "run_stop": ("nothing; it stops the clock, after run_start, with metadata status success or aborted", CUT),
    "train_samples": ("the number of training images, not empty", CUT),
    "eval_samples": ("the number of validation images, not empty", CUT),
    "block_start": ("nothing; metadata first_epoch_num and epoch_count, after run_start", CUT),
    "block_stop": ("nothing; metadata first_epoch_num", CUT),
    "epoch_start": ("nothing; metadata epoch_num", CUT),
    "epoch_stop": ("nothing; metadata epoch_num", CUT),
    "eval_start": ("nothing; metadata epoch_num", CUT),
    "eval_stop": ("nothing; metadata epoch_num", CUT),
    "eval_accuracy": ('{"BBOX": box AP, "SEGM": mask AP} in upper case, metadata epoch_num', CUT),
    "global_batch_size": ("the images of a step over all devices, above 0", f"Set optimizer.batch_size {RUN_AGAIN}"),
    "gradient_accumulation_steps": ("above 0", f"Set optimizer.accumulation_steps {RUN_AGAIN}"),
    "num_image_candidates": ("a multiple of 1000", f"Set model.proposals_train to a multiple of 1000 {RUN_AGAIN}"),
    "min_image_size": ("at least 0 for the checker, 800 by the rules", f"Set data.short_side=800 {RUN_AGAIN}"),
    "max_image_size": ("at least 0 for the checker, 1333 by the rules", f"Set data.long_side=1333 {RUN_AGAIN}"),
    "opt_base_learning_rate": (
        "a whole multiple of 0.02; below a batch size of 16 also 0.02 divided by a whole number",
        f"Set optimizer.learning_rate to such a value {RUN_AGAIN}",
    ),
    "opt_learning_rate_decay_factor": ("0.1", f"Set optimizer.decay_factor=0.1 {RUN_AGAIN}"),
    "opt_learning_rate_decay_steps": ("a list of two steps", f"Set optimizer.decay_steps=A,B {RUN_AGAIN}"),
    "opt_learning_rate_warmup_steps": ("at least 0", f"Set optimizer.warmup_steps {RUN_AGAIN}"),
    "opt_learning_rate_warmup_factor": ("above 0", f"Set optimizer.warmup_factor above 0 {RUN_AGAIN}"),
}
UNKNOWN_RULE = ("see the failed test", f"Fix the cause {RUN_AGAIN}")
