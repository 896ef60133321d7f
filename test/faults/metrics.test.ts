/**
 * Metrics, alert rules and dashboard, as a real Prometheus takes them: its checkers, and a server that scrapes a real proxy.
 */
import { exec, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { RawClient } from '../e2e/raw-client.ts';
import { query } from '../e2e/parity/bytes.ts';
import { startStack, until, type Stack } from '../support/stack.ts';
import { freePort } from '../support/sockets.ts';
import { missingTool } from './machine.ts';

const absent = missingTool('promtool', 'prometheus');
if (absent !== undefined) console.error(`metrics with Prometheus are ${absent}`);

const opsFile = (name: string) => fileURLToPath(new URL(`../../ops/${name}`, import.meta.url));
const SCRAPE_MS = 500;

/** What it says, of what it finds too. @throws when it fails. */
async function promtool(what: string): Promise<string> {
  const { stdout, stderr } = await promisify(exec)(`promtool ${what}`);
  return stdout + stderr;
}

let stack: Stack;
let folder: string;
beforeAll(async () => {
  if (absent !== undefined) return;
  folder = await mkdtemp(join(tmpdir(), 'pgjot-prometheus-'));
  stack = await startStack({
    tls: true,
    admin: { port: 0 },
    upstream: { pool: { reuse: 'same-identity', spares: 1 } },
  });
});
afterAll(async () => {
  await stack?.close();
  if (folder !== undefined) await rm(folder, { recursive: true, force: true });
});

describe.skipIf(absent !== undefined)("Prometheus's checkers", () => {
  it('take the rules, and see each of them fire and rest', async () => {
    expect(await promtool(`check rules ${opsFile('alerts.yml')}`)).toContain('SUCCESS');
    expect(await promtool(`test rules ${opsFile('alerts.test.yml')}`)).toContain('SUCCESS');
  });

  it('have nothing to say against what is scraped', async () => {
    const client = await stack.connect('alice');
    const text = await (await scrape()).text();
    await client.end();
    const file = join(folder, 'metrics');
    await writeFile(file, text);

    expect(text).toContain('pgjot_sessions{upstream="main",role="authenticated"} 1');
    expect(await promtool(`check metrics < ${file}`)).toBe('');
  });
});

describe.skipIf(absent !== undefined)('a Prometheus that scrapes a proxy', () => {
  it('has an answer to every query of the dashboard, and can evaluate every alert', async () => {
    await using prometheus = await startPrometheus();
    const password = await stack.token('alice');
    const enough = new AbortController();
    const work = (async () => {
      while (!enough.signal.aborted) {
        const client = await RawClient.login({ ...stack, tls: true }, password);
        client.send(query(`set pgjot.token = '${await stack.token('alice')}'`));
        await client.next('Z');
        client.destroy();
      }
    })();

    const empty = await until(async () => {
      const unanswered = await unansweredOf(prometheus, await dashboardQueries());
      return (unanswered.length === 0 || prometheus.age() > 30_000) && unanswered;
    }, 60_000);
    enough.abort();
    await work;

    expect(empty).toEqual([]);
    const rules = (await prometheus.ask('rules')) as {
      groups: { rules: { name: string; health: string; state: string }[] }[];
    };
    const alerts = rules.groups.flatMap((group) => group.rules);
    expect(alerts.length).toBeGreaterThan(15);
    expect(alerts.filter(({ health }) => health !== 'ok')).toEqual([]);
    expect(alerts.filter(({ state }) => state === 'firing').map(({ name }) => name)).toEqual([]);
  });
});

interface Prometheus extends AsyncDisposable {
  /** How long ago it began, in ms. */
  age(): number;
  /** What its API answers. */
  ask(path: string): Promise<unknown>;
}

const scrape = () => fetch(`http://127.0.0.1:${stack.proxy.counts().adminPort}/metrics`);

async function startPrometheus(): Promise<Prometheus> {
  const [port, startedAt] = [await freePort(), performance.now()];
  const config = {
    global: { scrape_interval: `${SCRAPE_MS}ms`, evaluation_interval: '1s' },
    rule_files: [opsFile('alerts.yml')],
    scrape_configs: [
      {
        job_name: 'pgjot',
        static_configs: [{ targets: [`127.0.0.1:${stack.proxy.counts().adminPort}`] }],
      },
    ],
  };
  // JSON is YAML.
  await writeFile(join(folder, 'prometheus.yml'), JSON.stringify(config));
  const child = spawn(
    'prometheus',
    [
      `--config.file=${join(folder, 'prometheus.yml')}`,
      `--storage.tsdb.path=${join(folder, 'data')}`,
      `--web.listen-address=127.0.0.1:${port}`,
    ],
    { stdio: 'ignore' },
  );
  const gone = once(child, 'exit');
  const ask: Prometheus['ask'] = async (path) => {
    const response = await fetch(`http://127.0.0.1:${port}/api/v1/${path}`);
    const { status, data, error } = (await response.json()) as Record<string, unknown>;
    if (status !== 'success') throw new Error(`${path}: ${String(error)}`);
    return data;
  };
  await until(() => ask('status/buildinfo').then(Boolean, () => false), 30_000);
  return {
    age: () => performance.now() - startedAt,
    ask,
    async [Symbol.asyncDispose]() {
      child.kill('SIGKILL');
      await gone;
    },
  };
}

/** Every query of the dashboard, with what Grafana would put for its variables. */
async function dashboardQueries(): Promise<string[]> {
  const { panels } = JSON.parse(await readFile(opsFile('grafana-dashboard.json'), 'utf8')) as {
    panels: { targets?: { expr: string }[] }[];
  };
  return panels
    .flatMap(({ targets = [] }) => targets)
    .map(({ expr }) =>
      expr.replaceAll(/\$(job|instance)/g, '.+').replaceAll('$__rate_interval', '10s'),
    );
}

/** Those to which there is no answer. @throws when one is no query at all. */
async function unansweredOf(prometheus: Prometheus, queries: string[]): Promise<string[]> {
  const unanswered: string[] = [];
  for (const one of queries) {
    const { result } = (await prometheus.ask(`query?query=${encodeURIComponent(one)}`)) as {
      result: { value: [number, string] }[];
    };
    if (!result.some(({ value }) => value[1] !== 'NaN')) unanswered.push(one);
  }
  return unanswered;
}
