"""Files of a run: replaced by a new run, cut back by a resumed one."""

from dl_techniques.utils.appended_file import AppendedFile


def test_a_new_run_replaces_an_old_file(tmp_path):
    path = tmp_path / "deep" / "log.txt"
    for _ in range(2):
        file = AppendedFile(path)
        file.append("a\n")
        file.append("ü\n")
        assert path.read_text(encoding="utf-8") == "a\nü\n" and file.size == 5


def test_a_resumed_run_goes_on_where_it_was(tmp_path, caplog):
    first = AppendedFile(tmp_path / "log.txt")
    first.append("1\n2\n")
    size = first.size
    first.append("3\nlost")
    again = AppendedFile(tmp_path / "log.txt")
    again.restore(size)
    again.append("3\n")
    assert (tmp_path / "log.txt").read_text() == "1\n2\n3\n" and again.size == 6
    assert not caplog.text
    (tmp_path / "log.txt").write_text("1\n")
    again.restore(size)
    again.append("3\n")
    assert (tmp_path / "log.txt").read_text() == "1\n3\n"
    assert "its beginning is lost" in caplog.text
