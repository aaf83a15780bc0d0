import os

from maskperf.data.images.page_cache import forget_all_files, forget_files


def test_files_and_folders_are_dropped_and_stay_as_they_were(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    files = [tmp_path / "a.json", tmp_path / "images" / "b.jpg"]
    for file in files:
        file.write_bytes(b"content")
    (tmp_path / "images" / "broken link").symlink_to(tmp_path / "nowhere")
    dropped = []
    honest = os.posix_fadvise

    def watched(descriptor, start, length, advice):
        dropped.append((os.fstat(descriptor).st_ino, advice))
        honest(descriptor, start, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", watched)
    assert forget_files([tmp_path / "a.json", tmp_path / "images", tmp_path / "missing.json"])
    assert dropped == [(file.stat().st_ino, os.POSIX_FADV_DONTNEED) for file in files]
    assert all(file.read_bytes() == b"content" for file in files)


def test_a_system_without_the_call_is_reported(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise")
    assert not forget_files([tmp_path])


def test_all_files_are_dropped_only_where_the_user_may(tmp_path):
    switch = tmp_path / "drop_caches"
    switch.write_text("")
    assert forget_all_files(switch) and switch.read_text() == "3\n"
    assert not forget_all_files(tmp_path / "no such folder" / "drop_caches")
