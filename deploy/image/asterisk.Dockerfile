# A gateway's Asterisk, for the pod in which `callyard agent` runs beside it. No stable Debian has had Asterisk since 12: this is
# unstable of one day, from Debian's archive of all days, so that the same comes out of each build.
#
#   docker build -f deploy/image/asterisk.Dockerfile -t registry.example.org/callyard-asterisk:22 .
#
# Its configuration comes from `callyard render asterisk`, into a volume; the root stays read-only.
ARG BASE=docker.io/library/debian:sid-slim
FROM ${BASE}
ARG SNAPSHOT=20261120T000000Z
# hadolint ignore=DL3008
RUN if [ -n "${SNAPSHOT}" ]; then \
        rm -f /etc/apt/sources.list.d/* \
        && echo "deb [check-valid-until=no] http://snapshot.debian.org/archive/debian/${SNAPSHOT} sid main" \
            > /etc/apt/sources.list; \
    fi \
    && apt-get update \
    && apt-get install --yes --no-install-recommends asterisk asterisk-core-sounds-en-gsm asterisk-moh-opsound-wav \
    && rm -rf /var/lib/apt/lists/* /var/log/apt
COPY deploy/image/asterisk-run deploy/image/asterisk-drain /usr/local/bin/
ENV CALLYARD_ASTERISK_BASE_DIRECTORY=/callyard \
    CALLYARD_ASTERISK_CONF=/callyard/etc/asterisk.conf
USER 10001:10001
CMD ["asterisk-run"]
