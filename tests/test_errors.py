"""One line for what the user can act on; a traceback for everything else."""

import re

import forked
import pytest


@pytest.mark.parametrize(
    "code",
    [
        "torch.save(torch.ones(10**6), {path!r})",
        "save_file({{'weight': torch.ones(10**6)}}, {path!r})",
        "open({path!r}, 'w').write('x' * 10**6)",
    ],
)
def test_full_disk_is_one_line(code, tmp_path):
    """A limit on the size of files, which every library meets like a full disk."""
    program = (
        "import resource, signal, torch\nfrom safetensors.torch import save_file\n"
        "from rlhf_ext.errors import one_line_errors\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))\nwith one_line_errors():\n    "
    ) + code.format(path=str(tmp_path / "file"))
    (tmp_path / "program.py").write_text(program)
    done = forked.run(tmp_path / "program.py")
    assert done.returncode == 1
    assert re.match(r"error: .+ cannot be written.+What was saved before", done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr
