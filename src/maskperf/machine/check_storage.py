"""Checks of the folders: the data set, the weights, free space, speed of the disk."""

from maskperf.machine.facts import StorageFacts
from maskperf.machine.finding import Finding, note, ok, problem
from maskperf.machine.situation import PUBLISHED_IMAGES_PER_SECOND_AND_GPU, Situation

# COCO 2017: archives of 18, 0.8 and 0.24 GB that hold pictures already compressed; unpacked beside them, so twice.
COCO_GIB_WITH_ARCHIVES = 40.0
RUN_GIB_NEEDED = 1.0
RUN_GIB_COMFORTABLE = 5.0
TRAIN_IMAGES = 118_287  # files; 117,266 of them are trained on
VAL_IMAGES = 5_000


def check_data(situation: Situation) -> Finding:
    data = situation.data
    missing = []
    missing += [] if data.train_json else ["annotations/instances_train2017.json"]
    missing += [] if data.val_json else ["annotations/instances_val2017.json"]
    for folder, found, wanted in (
        ("train2017", data.train_images, TRAIN_IMAGES),
        ("val2017", data.val_images, VAL_IMAGES),
    ):
        if found is None:
            missing.append(f"{folder}/")
        elif found != wanted:
            missing.append(f"{folder}/ ({found:,} pictures instead of {wanted:,})")
    if not missing:
        value = f"{data.root}: {TRAIN_IMAGES:,} and {VAL_IMAGES:,} pictures"
        return ok("COCO 2017", value, "complete by its number of files; maskperf run coco checks more")
    if data.was_asked_for and data.train_json and data.val_json and None not in (data.train_images, data.val_images):
        value = f"{data.root}: {data.train_images:,} and {data.val_images:,} JPEG files"
        return note("COCO 2017", value, f"another data set: COCO 2017 has {TRAIN_IMAGES:,} and {VAL_IMAGES:,}")
    fix = "maskperf prepare coco, or name the folder: maskperf doctor --data FOLDER, maskperf run coco data.root=FOLDER"
    if data.was_asked_for:
        return problem("COCO 2017", f"{data.root}: missing {', '.join(missing)}", "a COCO recipe cannot run on it", fix)
    value = f"{data.root}: not found" if len(missing) == 4 else f"{data.root}: missing {', '.join(missing)}"
    return note("COCO 2017", value, "the recipe demo needs none; the COCO recipes do", fix)


def check_weights(situation: Situation) -> Finding:
    wanted = situation.config.model.backbone_weights
    if situation.data.weights is not None:
        return ok("backbone weights", situation.data.weights, "found; maskperf run reads and checks them")
    fix = "maskperf prepare coco, or give model.backbone_weights=FILE."
    meaning = "the recipe demo needs none; the COCO recipes do"
    return note("backbone weights", f"{wanted}: not found", meaning, fix)


def check_data_space(situation: Situation) -> Finding:
    free = situation.data_storage.free_gib
    value = f"{_space(free)} at {situation.data_storage.path}"
    if (situation.data.train_images or 0) >= TRAIN_IMAGES:
        return ok("space for data", value, "the data set is there already")
    if free is not None and free < COCO_GIB_WITH_ARCHIVES:
        meaning = f"COCO 2017 takes up to {COCO_GIB_WITH_ARCHIVES:g} GiB while its archives are there, half of it later"
        return note("space for data", value, meaning, "Free some, or choose another place with --data.")
    return ok("space for data", value, f"COCO 2017 needs up to {COCO_GIB_WITH_ARCHIVES:g} GiB while it is unpacked")


def check_run_space(situation: Situation) -> Finding:
    storage = situation.run_storage
    value = f"{_space(storage.free_gib)} at {storage.path}"
    if not situation.run_folder_writable:
        fix = "Choose another place with run_dir=FOLDER, or change its rights."
        return problem("space for runs", value, "no folder in which this user may write: a run would stop at once", fix)
    if storage.free_gib is None:
        return note("space for runs", value, "nobody tells whether a run's files have room")
    if storage.free_gib < RUN_GIB_NEEDED:
        meaning = "a run leaves up to 0.5 GiB: weights, detections, logs"
        return problem("space for runs", value, meaning, "Free some, or choose another place with run_dir=FOLDER.")
    if storage.free_gib < RUN_GIB_COMFORTABLE:
        return note(
            "space for runs", value, "enough for one run, not for a series of five", "Free some before a series."
        )
    return ok("space for runs", value, "a run leaves up to 0.5 GiB")


def check_storage_kind(situation: Situation) -> Finding:
    storage = situation.data_storage
    words = [storage.kind or "unknown kind", storage.model, storage.file_system]
    value = f"{', '.join(word for word in words if word)} at {storage.path}"
    if storage.kind == "hard disk":
        meaning = "pictures are read in random order: a hard disk gives about a hundred of them a second"
        return note("storage of data", value, meaning, "Copy the data to an SSD.")
    if storage.kind == "network":
        meaning = "reading depends on the network and on who else uses it"
        return note("storage of data", value, meaning, "Copy the data to a disk of this machine.")
    return ok("storage of data", value, _meaning_of_kind(storage))


def check_disk_speed(situation: Situation) -> Finding:
    speed, gpus = situation.disk_speed, len(situation.machine.gpu.gpus)
    if speed is None:
        return ok("disk speed", "not measured", situation.disk_speed_missing)
    value = (
        f"{speed.pictures_per_second:,.0f} pictures/s read in random order by {speed.threads} threads; in one piece: "
        f"read {speed.read_mib_per_second:,.0f}, write {speed.write_mib_per_second:,.0f} MiB/s"
    )
    wanted = gpus * PUBLISHED_IMAGES_PER_SECOND_AND_GPU
    if gpus and speed.pictures_per_second < wanted:
        meaning = f"{gpus} GPU(s) as fast as an H100 of MLPerf 3.1 would read {wanted:,} pictures/s"
        fix = "Use a faster disk, or memory for all pictures (20 GiB): later epochs then read none."
        return note("disk speed", value, meaning, fix)
    text = "so many can this disk feed; a virtual or busy disk may give other numbers next time"
    return ok("disk speed", value, text)


def _space(free_gib: float | None) -> str:
    return "unknown space" if free_gib is None else f"{free_gib:.1f} GiB free"


def _meaning_of_kind(storage: StorageFacts) -> str:
    if storage.kind == "virtual disk":
        return "what lies below a virtual disk is not told; its speed is measured without --quick"
    if storage.kind in ("NVMe", "SSD"):
        return "random reads are fast"
    if storage.kind == "memory":
        return "the files lie in main memory and take room there"
    return "the system does not tell what holds this folder"
