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
# Afresh rather than pruned: a prune leaves the folders of what it removes. Then what Node never loads goes: types, maps, prose,
# and the sources of what is compiled.
RUN npm run build && npm ci --ignore-scripts --omit=dev --omit=optional \
  && find dist node_modules -type f \( -name '*.ts' -o -name '*.cts' -o -name '*.mts' -o -name '*.map' -o -iname '*.md' \
    -o -name '*.zip' -o -name '*.yml' -o -name .tsbuildinfo \) -delete \
  && find node_modules -type d \( -name test -o -name tests -o -name benchmarks -o -name coverage \) -prune -exec rm -r {} + \
  && find dist node_modules -type d -empty -delete

FROM node:24-bookworm-slim
ENV NODE_ENV=production
WORKDIR /pgjot
COPY --from=build /build/package.json /build/proxy.config.schema.json ./
COPY --from=build /build/node_modules node_modules
COPY --from=build /build/dist dist
RUN ln -s /pgjot/dist/cli/main.js /usr/local/bin/pgjot
# The image's own unprivileged user; nothing under /pgjot is writable for it.
USER node
EXPOSE 6432
STOPSIGNAL SIGTERM
# Asks /healthz of the administrators' endpoint where the configuration has one, else whether the port answers.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s CMD ["node", "/pgjot/dist/cli/health.js", "/etc/pgjot/proxy.config.json"]
ENTRYPOINT ["pgjot"]
CMD ["start", "--config", "/etc/pgjot/proxy.config.json"]
