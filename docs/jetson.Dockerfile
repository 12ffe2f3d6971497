# awq-edge on JetPack's container base; see jetson.md. Build it on the board, from a checkout:
#   docker build -f docs/jetson.Dockerfile --build-arg JETPACK_IMAGE=<image> -t awq-edge .
# JETPACK_IMAGE: an image with CUDA, TensorRT and its Python module for the JetPack on the board.
ARG JETPACK_IMAGE
FROM ${JETPACK_IMAGE}

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv python3-dev python3-libnvinfer cmake g++ make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/awq-edge
COPY . .
# The environment sees the system's TensorRT: there is no wheel of JetPack's version. CUDA_MAJOR: 13
# on JetPack 7.2, 12 on JetPack 6.2.
ARG CUDA_MAJOR=13
RUN python3 -m venv --system-site-packages /opt/env \
    && grep -v '^cuda-python' constraints.txt > /opt/constraints.txt \
    && /opt/env/bin/pip install --no-cache-dir -c /opt/constraints.txt '.[jetson]' "cuda-python==${CUDA_MAJOR}.*" \
    && /opt/env/bin/python -c 'import tensorrt, awq_edge'
# A container is built without a GPU: every Orin is 8.7, Thor is 11.0.
ARG COMPUTE_CAPABILITY=8.7
ENV AWQ_EDGE_CACHE=/cache PATH=/opt/env/bin:/usr/local/cuda/bin:$PATH
RUN awq-edge build-plugins --arch ${COMPUTE_CAPABILITY} --out /opt/plugins
# Outside the cache folder, which is a volume.
ENV AWQ_EDGE_KERNELS=/opt/plugins/libawq_edge_kernels.so

ENTRYPOINT ["awq-edge"]
