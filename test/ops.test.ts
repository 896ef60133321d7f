/** The files in ops/ say the same as the program: its ports, paths, times, its image's user, and configurations that it takes. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parse, parseAllDocuments } from 'yaml';
import { loadConfig } from '../src/proxy.ts';
import { ROOT } from './support/cli.ts';

const OPS = join(ROOT, 'ops');
const text = (file: string) => readFileSync(join(OPS, file), 'utf8');
const image = readFileSync(join(ROOT, 'Dockerfile'), 'utf8');

it('are YAML that says one thing in one way', () => {
  const files = readdirSync(OPS, { recursive: true, encoding: 'utf8' });
  const yaml = files.filter((file) => file.endsWith('.yaml'));

  const problems = yaml.flatMap((file) =>
    parseAllDocuments(text(file), { uniqueKeys: true }).flatMap(({ errors, warnings }) =>
      [...errors, ...warnings].map(({ message }) => `${file}: ${message}`),
    ),
  );

  expect(yaml.length).toBeGreaterThan(5);
  expect(problems).toEqual([]);
});

interface Pod {
  readonly terminationGracePeriodSeconds: number;
  readonly securityContext: { readonly runAsUser: number };
  readonly containers: readonly [
    {
      readonly ports: readonly { readonly name: string; readonly containerPort: number }[];
      readonly volumeMounts: readonly { readonly mountPath: string }[];
      readonly lifecycle: { readonly preStop: { readonly exec: { readonly command: string[] } } };
    } & Record<
      `${'startup' | 'liveness' | 'readiness'}Probe`,
      { httpGet: { path: string; port: string } }
    >,
  ];
}

describe('the Kubernetes manifests', () => {
  const config = loadConfig(join(OPS, 'kubernetes', 'proxy.config.json'));
  const deployment = parse(text('kubernetes/deployment.yaml')) as {
    spec: { template: { metadata: { labels: object }; spec: Pod } };
  };
  const { spec: pod, metadata } = deployment.spec.template;
  const [container] = pod.containers;
  const selectors = ['service', 'poddisruptionbudget', 'networkpolicy'].map((name) => {
    const { spec } = parse(text(`kubernetes/${name}.yaml`)) as {
      spec: { selector?: { matchLabels?: object }; podSelector?: { matchLabels: object } };
    };
    return spec.podSelector?.matchLabels ?? spec.selector?.matchLabels ?? spec.selector;
  });

  it('name the ports that the configuration listens on', () => {
    const ports = Object.fromEntries(container.ports.map((one) => [one.name, one.containerPort]));

    expect(ports).toEqual({ postgres: config.listen.port, admin: config.admin?.port });
  });

  it('leave a drain the time that it takes, after what comes before it', () => {
    const before = Number(container.lifecycle.preStop.exec.command[1]);

    expect(before).toBeGreaterThan(0);
    expect(pod.terminationGracePeriodSeconds * 1000).toBeGreaterThan(
      before * 1000 + config.sessions.drainTimeoutMs,
    );
  });

  it('probe what the endpoint for administrators answers', () => {
    const probes = [container.startupProbe, container.livenessProbe, container.readinessProbe];

    expect(probes.map(({ httpGet }) => httpGet)).toEqual([
      { path: '/healthz', port: 'admin' },
      { path: '/healthz', port: 'admin' },
      { path: '/readyz', port: 'admin' },
    ]);
  });

  it('run as the user of the image', () => {
    // The unprivileged user that node's images have.
    expect(image).toMatch(/^USER node$/m);
    expect(pod.securityContext.runAsUser).toBe(1000);
  });

  it('mount every folder that the configuration names', () => {
    const mounted = new Set(container.volumeMounts.map(({ mountPath }) => mountPath));
    const named = [...text('kubernetes/proxy.config.json').matchAll(/"(\/etc\/[^"]+)\/[^/"]+"/g)];

    expect(named.length).toBeGreaterThan(3);
    expect(named.filter(([, folder]) => !mounted.has(folder as string))).toEqual([]);
  });

  it('select the pods that they are about', () => {
    expect(selectors).toEqual(selectors.map(() => metadata.labels));
  });
});

describe('the compose file', () => {
  interface Service {
    readonly ports?: readonly string[];
    readonly stop_grace_period?: string;
    readonly read_only?: boolean;
    readonly image: string;
  }
  const { services } = parse(text('compose/compose.yaml'), { merge: true }) as {
    services: Record<string, Service>;
  };
  const config = loadConfig(join(OPS, 'compose', 'proxy.config.json'));

  it('publishes the port that its configuration listens on, on loopback alone', () => {
    const published = Object.values(services).flatMap(({ ports = [] }) => ports);

    expect(published).toEqual([`127.0.0.1:\${PGJOT_PORT:-6432}:${config.listen.port}`]);
  });

  it('leaves a drain its time, and pgjot nothing to write to', () => {
    const grace = Number(/^(\d+)s$/.exec(services['pgjot']?.stop_grace_period ?? '')?.[1]);

    expect(grace * 1000).toBeGreaterThan(config.sessions.drainTimeoutMs);
    const own = Object.values(services).filter((one) => one.image.includes('PGJOT_IMAGE'));
    expect(own.map((one) => one.read_only)).toEqual([true, true, true]);
  });
});

describe('the image', () => {
  it('asks after its health by a program that the build makes', () => {
    const [, program] =
      /^HEALTHCHECK .* CMD \["node", "\/pgjot\/dist\/(.*)\.js"/m.exec(image) ?? [];

    expect(readdirSync(join(ROOT, 'src', 'cli'))).toContain(`${program?.replace('cli/', '')}.ts`);
  });
});
