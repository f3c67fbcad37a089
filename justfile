# Recipes mirror CI one to one: `just test` is what .ci/run runs.

bin := env("CASSTORE_VENV", ".venv") / "bin"

# everything that CI does
test *args:
    scripts/test {{args}}

# system packages, virtual environment, locked libraries
setup:
    scripts/setup dev

# the main job, end to end
demo:
    scripts/demo

lint:
    {{bin}}/ruff check .
    {{bin}}/ruff format --check .

types:
    {{bin}}/mypy

layers:
    {{bin}}/lint-imports

format:
    {{bin}}/ruff check --fix .
    {{bin}}/ruff format .

# the soak budgets too
nightly:
    scripts/test --nightly

# side by side with the peers that are installed
bench *args:
    {{bin}}/python -m benchmarks {{args}}

# after a change of the dependencies in pyproject.toml; needs uv
lock:
    uv pip compile -q pyproject.toml --extra all --group dev --universal --python-version 3.11 \
        --generate-hashes --no-header --no-annotate -o requirements.lock
