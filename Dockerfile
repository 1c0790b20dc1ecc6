# The server on a CPU: docker build -t hf-elastic . && docker run --rm -p 127.0.0.1:8080:8080 -v /path/to/model:/model:ro hf-elastic /model
FROM python:3.12-slim

WORKDIR /src
# torch comes first, from the index of builds without CUDA, so that no other package pulls the larger one.
COPY constraints.txt .
RUN pip install --no-cache-dir --disable-pip-version-check --index-url https://download.pytorch.org/whl/cpu \
	"$(grep ^torch= constraints.txt)"
COPY pyproject.toml README.md LICENSE hf_elastic_cli.py ./
COPY hf_elastic hf_elastic
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[serve,retrieval,onnx]"

RUN useradd --create-home server
USER server
WORKDIR /home/server
EXPOSE 8080
# Only inside the container: what is reachable from outside is what -p publishes.
ENTRYPOINT ["hf-elastic", "serve", "--host", "0.0.0.0", "--port", "8080", "--model"]
