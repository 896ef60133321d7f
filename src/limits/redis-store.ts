/**
 * The ledger's store where several proxies share one, in Redis or Valkey: sums over all of them, while it answers.
 *
 *   pgjot:alive:PROXY       there for 15 s after each sign of life; who has none counts no more
 *   pgjot:address:HASH      a hash: how many clients each proxy has from there; pgjot:subject:HASH likewise
 *   pgjot:setback:HASH      a hash: failures by issuer, encrypted, and when the last one was
 *   pgjot:rate:…            rate-limiter-flexible's
 *
 * Each proxy's own count is its own truth: it tells the store the number, never a difference, so that nothing drifts when an
 * answer is lost, and tells it all again when the store has forgotten. While it does not answer each proxy counts alone; what
 * it could not tell then leaves the store with its name: it takes another one, under which it tells everything.
 */
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { RateLimiterRedis } from 'rate-limiter-flexible';
import type { Config } from '../config.ts';
import type { LedgerStore } from './ledger.ts';
import { localLimiter, type Rate, rateOf } from './rate.ts';
import type { RedisLink } from './redis-link.ts';
import {
  LocalSetbacks,
  memoryMs,
  OTHERS,
  type Setbacks,
  type Wait,
  waitAfter,
} from './setbacks.ts';
import { LocalTally, type Tally } from './tally.ts';

const PULSE_MS = 5_000;
const ALIVE_MS = 15_000;
// A count that nobody has touched for so long is nobody's; each proxy says its own again well before.
const COUNT_MS = 7_200_000;
const RECOUNT_MS = 1_800_000;

// Sums what proxies that live have; sets ours, where there is room for it.
const ADD = `
local total = tonumber(ARGV[2])
local counts = redis.call('HGETALL', KEYS[1])
for i = 1, #counts, 2 do
  if counts[i] ~= ARGV[1] then
    if redis.call('EXISTS', 'pgjot:alive:' .. counts[i]) == 1 then
      total = total + tonumber(counts[i + 1])
    else
      redis.call('HDEL', KEYS[1], counts[i])
    end
  end
end
if total > tonumber(ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1`;

const TELL = `
if tonumber(ARGV[2]) > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return 1`;

const NOW = `local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)`;

// As `LocalSetbacks.failed`: no more than 16 issuers, and one for the others.
const FAILED = `${NOW}
local issuer = ARGV[1]
if redis.call('HEXISTS', KEYS[1], issuer) == 0 and redis.call('HLEN', KEYS[1]) >= 16 then issuer = ARGV[2] end
local failures = tonumber(string.match(redis.call('HGET', KEYS[1], issuer) or '0', '^%d+')) + 1
redis.call('HSET', KEYS[1], issuer, failures .. ':' .. string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return failures`;

const AT = `${NOW}
return {string.format('%.0f', now), redis.call('HGETALL', KEYS[1])}`;

// One block of it is a permutation that only our key gives.
const BLOCK = 'aes-256-ecb';

/** The store. `open` it when the proxy starts, and `close` it when it ends. */
export class RedisStore implements LedgerStore {
  readonly addresses: SharedTally;
  readonly subjects: SharedTally;
  readonly logins: Rate;
  readonly loginsByAddress: Rate;
  readonly setbacks: Setbacks;
  readonly #link: RedisLink;
  readonly #voice: Voice = { name: newName(), isBehind: false };
  #pulse: NodeJS.Timeout | undefined;
  #recountAt = 0;

  constructor(link: RedisLink, limits: () => Config['limits']) {
    this.#link = link;
    this.addresses = new SharedTally(link, this.#voice, 'address');
    this.subjects = new SharedTally(link, this.#voice, 'subject');
    this.logins = sharedRate(link, 'all', () => limits().loginsPerSecond);
    this.loginsByAddress = sharedRate(link, 'by', () => limits().loginsPerSecondPerAddress);
    this.setbacks = new SharedSetbacks(link, () => limits().failedLogins);
  }

  open(): void {
    const beat = () => void this.#beat().catch(() => {});
    this.#link.commands.on('ready', beat);
    this.#pulse = setInterval(beat, PULSE_MS).unref();
  }

  /** What this proxy has counted is over at once, for the others too. */
  async close(): Promise<void> {
    clearInterval(this.#pulse);
    await this.#link.ask((redis) => redis.del(aliveOf(this.#voice.name))).catch(() => {});
  }

  /** A sign of life. Where the last one is gone, others may have dropped our counts, or the store has lost everything. */
  async #beat(): Promise<void> {
    const { name, isBehind } = this.#voice;
    const isKnown =
      !isBehind && (await this.#link.ask((redis) => redis.pexpire(aliveOf(name), ALIVE_MS))) === 1;
    if (!isKnown) await this.#introduce(isBehind ? newName() : name);
    if (isKnown && performance.now() < this.#recountAt) return;
    await Promise.all([this.addresses.tellAll(), this.subjects.tellAll()]);
    this.#recountAt = performance.now() + RECOUNT_MS;
  }

  /** Lives under this name from now on; what is counted under the one before counts no more. */
  async #introduce(name: string): Promise<void> {
    const before = this.#voice.name;
    await this.#link.ask((redis) => redis.set(aliveOf(name), 1, 'PX', ALIVE_MS));
    Object.assign(this.#voice, { name, isBehind: false });
    if (name !== before) await this.#link.ask((redis) => redis.del(aliveOf(before)));
  }
}

/** As whom a proxy counts. */
interface Voice {
  name: string;
  /** Whether the store has not heard something: what it has of ours may be wrong, under keys that we know no more. */
  isBehind: boolean;
}

function newName(): string {
  return randomBytes(8).toString('hex');
}

function aliveOf(name: string): string {
  return `pgjot:alive:${name}`;
}

/** A tally of all proxies together. */
class SharedTally implements Tally {
  readonly #link: RedisLink;
  readonly #voice: Voice;
  readonly #kind: string;
  readonly #own = new LocalTally();

  constructor(link: RedisLink, voice: Voice, kind: string) {
    this.#link = link;
    this.#voice = voice;
    this.#kind = kind;
  }

  async add(key: string, limit: number): Promise<boolean> {
    if (!this.#own.add(key, limit)) return false;
    const most = limit === Infinity ? 1e9 : limit;
    const answer = this.#say(ADD, key, this.#own.count(key), most, COUNT_MS);
    // Where nobody knows of the others, there is room as far as anybody knows.
    const hasRoom = (await answer.catch(() => 1)) !== 0;
    // It may have been told meanwhile, when another left.
    if (!hasRoom) this.remove(key);
    return hasRoom;
  }

  remove(key: string): void {
    this.#own.remove(key);
    void this.#tell(key).catch(() => {});
  }

  /** Tells the store all that this proxy has, a hundred at a time. */
  async tellAll(): Promise<void> {
    const keys = [...this.#own.keys()];
    while (keys.length > 0) {
      await Promise.all(keys.splice(0, 100).map((key) => this.#tell(key)));
    }
  }

  async #tell(key: string): Promise<void> {
    await this.#say(TELL, key, this.#own.count(key), COUNT_MS);
  }

  async #say(script: string, key: string, ...said: number[]): Promise<unknown> {
    const name = this.#link.nameOf(this.#kind, key);
    try {
      return await this.#link.ask((redis) =>
        redis.eval(script, 1, name, this.#voice.name, ...said),
      );
    } catch (error) {
      this.#voice.isBehind = true;
      throw error;
    }
  }
}

/** Failures at all proxies together. This one's own are kept here too, for when the store does not answer. */
class SharedSetbacks implements Setbacks {
  readonly #link: RedisLink;
  readonly #rules: () => Config['limits']['failedLogins'];
  readonly #own: LocalSetbacks;

  constructor(link: RedisLink, rules: () => Config['limits']['failedLogins']) {
    this.#link = link;
    this.#rules = rules;
    this.#own = new LocalSetbacks(rules);
  }

  async at(address: string): Promise<readonly Wait[]> {
    const answer = this.#link.ask((redis) => redis.eval(AT, 1, this.#nameOf(address)));
    return answer.then((said) => this.#read(address, said)).catch(() => this.#own.at(address));
  }

  failed(address: string, issuer: string): void {
    this.#own.failed(address, issuer);
    const name = this.#nameOf(address);
    const field = this.#veil(address, issuer);
    const ms = memoryMs(this.#rules());
    this.#link.ask((redis) => redis.eval(FAILED, 1, name, field, OTHERS, ms)).catch(() => {});
  }

  succeeded(address: string, issuer: string): void {
    this.#own.succeeded(address, issuer);
    const field = this.#veil(address, issuer);
    this.#link.ask((redis) => redis.hdel(this.#nameOf(address), field)).catch(() => {});
  }

  #nameOf(address: string): string {
    return this.#link.nameOf('setback', address);
  }

  /** An issuer's digest as the store has it: by the digest itself, who reads there could tell whose it is. */
  #veil(address: string, issuer: string): string {
    if (issuer === OTHERS) return OTHERS;
    const cipher = createCipheriv(BLOCK, this.#keyFor(address), null).setAutoPadding(false);
    return cipher.update(Buffer.from(issuer, 'hex')).toString('base64url');
  }

  #unveil(address: string, field: string): string {
    if (field === OTHERS) return OTHERS;
    const cipher = createDecipheriv(BLOCK, this.#keyFor(address), null).setAutoPadding(false);
    return cipher.update(Buffer.from(field, 'base64url')).toString('hex');
  }

  #keyFor(address: string): Buffer {
    return this.#link.keyFor(`issuers at ${address}`);
  }

  /** @throws {TypeError} where that is nothing that we have written. */
  #read(address: string, said: unknown): Wait[] {
    const [now, fields] = said as [string, string[]];
    const rules = this.#rules();
    return Array.from({ length: fields.length / 2 }, (_, index) => {
      const [field = '', value = ''] = fields.slice(2 * index);
      const issuer = this.#unveil(address, field);
      const [failures = NaN, lastAt = NaN] = value.split(':').map(Number);
      const leftMs = lastAt + waitAfter(failures, rules) - Number(now);
      if (Number.isNaN(leftMs)) throw new TypeError('not a setback');
      return { issuer, leftMs: Math.min(Math.max(leftMs, 0), rules.maxDelayMs) };
    });
  }
}

/** A rate of all proxies together, or of this one while the store does not answer. */
function sharedRate(link: RedisLink, kind: string, perSecond: () => number | undefined): Rate {
  const own = rateOf(localLimiter(), perSecond);
  const shared = new RateLimiterRedis({
    storeClient: link.commands,
    keyPrefix: `pgjot:rate:${kind}`,
    points: 1,
    duration: 1,
  });
  const all = rateOf(shared, perSecond);
  return {
    async take(key) {
      if (perSecond() === undefined) return true;
      return link.ask(() => all.take(link.nameOf('rate', key))).catch(() => own.take(key));
    },
  };
}
