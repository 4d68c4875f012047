"""What tests of the command line share."""


def check_one_line_error(result, *parts):
    code, out, err = result
    assert (code, out) == (1, "")
    (line,) = err.strip().splitlines()
    assert line.startswith("Error: ")
    for part in parts:
        assert part in line
