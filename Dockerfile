# The proxy as an image: built with everything, run with nothing but Node and what production needs.
#
#   docker build -t pgjot .
#   docker run --read-only --stop-timeout 70 -p 6432:6432 -v ./config:/etc/pgjot:ro -e PGJOT_MAIN_SECRET pgjot
#
# The configuration is /etc/pgjot/proxy.config.json; paths inside it are relative to that folder. Docker waits 10 s
# before it kills unless told otherwise; a drain takes up to `sessions.drainTimeoutMs`, 60 s.

FROM node:24-bookworm-slim AS build
WORKDIR /build
COPY package.json package-lock.json ./
# Scripts stay off: `prepare` would compile what has not been copied yet.
RUN npm ci --ignore-scripts
COPY tsconfig.json tsconfig.build.json proxy.config.schema.json ./
COPY scripts scripts
COPY src src
# Afresh rather than pruned: a prune leaves the folders of what it removes.
RUN npm run build && npm ci --ignore-scripts --omit=dev --omit=optional

FROM node:24-bookworm-slim
ENV NODE_ENV=production
WORKDIR /pgjot
COPY --from=build /build/package.json /build/proxy.config.schema.json ./
COPY --from=build /build/node_modules node_modules
COPY --from=build /build/dist dist
# The image's own unprivileged user; nothing under /pgjot is writable for it.
USER node
EXPOSE 6432
STOPSIGNAL SIGTERM
# PGJOT_PORT where `listen.port` is not 6432.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s \
  CMD ["node", "-e", "require('node:net').connect(process.env.PGJOT_PORT ?? 6432, '127.0.0.1').on('connect', () => process.exit(0)).on('error', () => process.exit(1))"]
ENTRYPOINT ["node", "dist/cli/main.js"]
CMD ["start", "--config", "/etc/pgjot/proxy.config.json"]
