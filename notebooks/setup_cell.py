SCALE = "tiny"  # the bundled miniature: offline, no GPU. The only switch: "colab" and "paper" are in notebook 12
REPOSITORY, RELEASE = "https://github.com/manu-tutorial/manu", "v0.1.0"
import importlib.util, os, pathlib, runpy, shutil, subprocess, sys, tempfile
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # figures appear here, whatever the shell says
clones = [here := pathlib.Path.cwd(), *here.parents, here / "manu", here / f"manu-{RELEASE}"]
sys.path[:0] = [str(p) for p in clones if all(os.path.exists(p / x) for x in ("data/tiny_llava", "pyproject.toml"))][:1]
if not importlib.util.find_spec("manu_utils"):  # Colab, or a notebook opened alone: this release, and nothing newer
    with tempfile.TemporaryDirectory(dir=here) as part:  # a clone that is cut short leaves nothing behind
        clone = f"git clone -q --depth=1 -c advice.detachedHead=false -b {RELEASE} {REPOSITORY}".split() + [f"{part}/manu"]
        if fix := "install git" if not shutil.which("git") else "connect to the network" if subprocess.call(clone) else "":
            raise RuntimeError(f"{REPOSITORY} {RELEASE} could not be cloned: {fix}, or unpack it here as manu.")
        runpy.run_path(f"{part}/manu/notebooks/install_missing.py", run_name="__main__")
