# The server: docker build -t dl-techniques . ; a model's folder is mounted at /model.
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt ".[jax,serve]" \
    && useradd --create-home --uid 10001 server \
    && mkdir /cache && chown server /cache

USER server
# Compiled programs are kept in /cache, so that a new start need not compile them again.
ENV KERAS_BACKEND=jax XDG_CACHE_HOME=/cache
EXPOSE 8000
HEALTHCHECK --start-period=5m CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["dl-techniques", "serve", "/model", "--host", "0.0.0.0"]
