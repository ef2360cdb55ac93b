"""What modules say together, one says that stands alone."""

from tools.pytorch.one_file import one_file


def test_two_modules_are_one(tmp_path):
    (tmp_path / "inner.py").write_text('"""Inner."""\n\nimport math\n\nHALF = math.pi / 2  # of a turn\n')
    (tmp_path / "outer.py").write_text(
        '"""Outer."""\n\nimport json\nimport math\n\nimport numpy as np\n\nfrom .inner import (\n    HALF,\n)\n\n'
        "\ndef turn():\n    return json.dumps(float(np.float64(HALF + math.pi / 2)))\n"
    )
    found = one_file([tmp_path / "inner.py", tmp_path / "outer.py"])
    names = {}
    exec(compile(found, "one", "exec"), names)
    assert (names["__doc__"], names["turn"]()) == ("Outer.", "3.141592653589793")
    assert found.count("import math") == 1
    assert "from ." not in found
    assert found.index("import math") < found.index("import numpy") < found.index("HALF = math.pi / 2  # of a turn")
